"""The EM algorithm: its loop, its M-step, its constraints, where it starts, and what makes it faster."""
