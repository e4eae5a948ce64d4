"""What each command does: ``prepare`` checks what the user gave and returns the work to do."""
