"""The servers that are measured, and each one's configuration beside this file."""
