"""What a prefix cache under pressure is worth in wall time: stock and Jenga servers compared."""
