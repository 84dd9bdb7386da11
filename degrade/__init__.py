"""What happens when something fails: pure decisions over small state; time and chance are arguments."""
