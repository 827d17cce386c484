"""What a trained policy does inside, beside what it scores."""
