"""The errors of jsonargparse and Lightning as one sentence each: the key, the value, and what was expected."""

from __future__ import annotations

import re


def one_sentence(message: str) -> str:
    """Shorten an error of jsonargparse or Lightning to the sentence that names the key, the value and what was expected."""
    text = re.sub(r"\s+", " ", message).strip().rstrip(".")
    text = re.sub(r"^error: ", "", text)
    missing = re.search(r"^the following arguments are required: (.*)$", text)
    if missing:
        options = " and ".join(f"--{name.strip().lstrip('-')}" for name in missing[1].split(","))
        return f"{options} must be given"
    key = next(iter(re.findall(r'^(?:Parser key|Validation failed:)?\s*"([\w.+]+)"', text)), "")
    option = re.search(r"class_path '([\w.]+)'.*?[Oo]ption '([^']+)' is not accepted", text)
    if option:
        owner = option[1].rpartition(".")[2]
        return f"{key}: {owner} has no option '{option[2]}' (--{key}.help={owner} lists them)"
    value = re.search(r"(?:Given|Got) value: (.*)$", text)
    nested = re.search(r"NestedArg\(key='([\w.]+)', val=(.*)\)$", text)
    if key and value:
        key, given = (f"{key}.{nested[1]}", nested[2].strip("'")) if nested else (key, value[1])
        expected = re.findall(r"Expected an? (?:<class ')?([\w. ]+?)(?:'>|:| -|\.| Expected| Given|$)", text)
        wanted = " or ".join(dict.fromkeys(e for e in expected if e != "NoneType" and not e.startswith("path but")))
        wanted = wanted.replace("dot import path string", "the name of a class")
        return f"{key}: {given[:300]!r} is not accepted" + (f", expected {wanted}" if wanted else "")
    return re.sub(r"^(?:Parser key|Validation failed:?)\s*", "", text)
