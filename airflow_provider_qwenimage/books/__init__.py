"""The books: a row for each submission, and the budgets, in an SQL database of the user's own.

Nothing here is imported unless a connection names its books.
"""
