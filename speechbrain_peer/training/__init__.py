"""What a training run needs beside the model: checkpoints and schedules."""
