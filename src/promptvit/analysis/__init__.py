"""What tuned models and their runs look like from inside."""
