"""What is provable about a result, and its independent checkers."""
