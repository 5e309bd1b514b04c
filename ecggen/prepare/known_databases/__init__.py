"""What is known of each database."""
