"""Lists a bucket with Google's library and application default credentials, once for each line `call`."""

import os
import sys

from google.cloud import storage

client = None
for line in sys.stdin:
    try:
        client = client or storage.Client(client_options={"api_endpoint": os.environ["STORAGE_URL"]})
        names = [blob.name for blob in client.list_blobs("training-data")]
        print("ok", *names, flush=True)
    except Exception as error:
        print(f"error {type(error).__name__}:", " ".join(str(error).split()), flush=True)
