"""A person chooses among stored images: the operator, its candidates, and the verdicts in their sidecars."""
