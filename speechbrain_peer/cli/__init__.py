"""The command `tse`: all that one does with voices, data and models from the shell."""
