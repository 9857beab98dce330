"""The text that networks read, as token ids."""
