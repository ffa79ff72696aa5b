"""The command `tse`: extraction, and what one does with models, from the shell."""
