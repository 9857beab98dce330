"""Turn the text that networks read into token ids."""
