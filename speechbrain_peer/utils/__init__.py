"""What every room may use: files, audio, signals, the machine."""
