"""Making a model traceable, and finding its mixers again."""
