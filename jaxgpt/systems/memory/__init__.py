"""GPT-2 with a memory."""
