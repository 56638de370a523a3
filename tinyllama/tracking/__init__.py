"""What a run leaves behind: its journal, its records, its picture, and the MLflow run that mirrors them."""
