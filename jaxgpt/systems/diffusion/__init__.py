"""Masked diffusion, of whole texts and of blocks."""
