"""Fast pictures of MuJoCo scenes."""
