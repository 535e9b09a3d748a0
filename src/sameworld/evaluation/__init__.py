"""What the numbers are worth: proof, gap, report."""
