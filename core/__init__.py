"""What the API and the workers both know: shapes, rows, rules. Knows neither HTTP nor torch."""
