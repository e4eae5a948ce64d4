"""SB3 policies that host a vision-language-action model."""
