"""Handles any text from outside, or for a message. Knows neither the API nor Airflow."""
