"""What is kept in the input and output folders."""
