"""What is read off SSD's mixing matrix M, without the matrix."""
