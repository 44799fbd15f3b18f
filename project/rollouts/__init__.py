"""Engines x environment -> episodes -> training rows; weights go back into the engine."""
