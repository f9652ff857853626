"""GPT-2 with a memory that is carried from segment to segment of a document."""
