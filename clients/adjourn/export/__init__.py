"""Writes a checkpoint into a file that plain PyTorch code loads without Adjourn."""
