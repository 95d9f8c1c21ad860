"""What we keep: the database, the result cache and the blobs."""
