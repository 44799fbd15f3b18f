"""LightningModules (SFT, agent evaluation, PPO) and the policy they train."""
