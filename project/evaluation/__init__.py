"""What is measured of an agent, with n and a 95 % confidence interval."""
