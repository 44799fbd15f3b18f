"""Print what verl's own MultiTurnSFTDataset makes of a file: per conversation all text, and the text that it trains.

Run as a process: `verl_reads.py FILE MODEL`. verl is installed without what it needs for training. Its package imports three
of those, which the dataset does not use but for two of omegaconf's classes in `isinstance`; stand-ins take their place.
"""

import json
import sys
from unittest.mock import MagicMock

for name in ("ray", "tensordict", "tensordict.tensorclass"):
    sys.modules[name] = MagicMock()
omegaconf = MagicMock(DictConfig=type("DictConfig", (dict,), {}), ListConfig=type("ListConfig", (list,), {}))
sys.modules["omegaconf"] = omegaconf

from transformers import AutoTokenizer  # noqa: E402
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset  # noqa: E402

file, model = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
dataset = MultiTurnSFTDataset([file], tokenizer, {"pad_mode": "no_padding", "max_length": 100_000})
for row in dataset:
    ids, mask = row["input_ids"].tolist(), row["loss_mask"].tolist()
    runs, before = [], 0
    for token, trained in zip(ids, mask, strict=True):
        if trained:
            runs[-1:] = [[*runs[-1], token]] if before else [*runs[-1:], [token]]
        before = trained
    print("verl:", json.dumps([tokenizer.decode(ids), [tokenizer.decode(run) for run in runs]]))
