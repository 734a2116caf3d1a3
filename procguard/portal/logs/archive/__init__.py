"""The archive of workers' logs: objects in a folder or an S3 bucket, each with bytes of many workers, and their index.

    coverage.py    ranges of a stream: merging, subtracting
    objects.py     the format of an object: header, compressed pieces, digests
    object_store.py    stores of objects: the interface, a folder, errors; s3.py: a bucket
    index.py       maps bytes of streams to objects: SQLite or PostgreSQL
    archive.py     uploads logs from the disk, reads them back, deletes those that have expired
    rebuild.py     rebuilds the index from the objects' headers

Must not know HTTP, access control or the log store's retention. Start with `archive.py`.
"""
