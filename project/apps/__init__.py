"""What people look at: samples and statistics in the terminal."""
