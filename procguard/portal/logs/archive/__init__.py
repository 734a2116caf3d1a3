"""The archive of workers' logs: objects in a folder or an S3 bucket, each with bytes of many workers, and their index.

    coverage.py    ranges of a stream: merging, subtracting
    objects.py     the format of an object: header, compressed pieces, digests
    object_store.py      where objects are: the interface, a folder, errors; s3.py: a bucket
    index.py       which bytes of which stream are where in which object: SQLite or PostgreSQL
    archive.py     uploads what is stored on the disk, reads it back, deletes what is no longer wanted
    rebuild.py     the index, made again from the objects' own headers

Must not know HTTP, access control or the log store's retention. Start with `archive.py`.
"""
