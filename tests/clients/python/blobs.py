"""Lists a container with Azure's library, once for each line `call`; the argument names the credential."""

import os
import sys

from azure.identity import DefaultAzureCredential, ManagedIdentityCredential
from azure.storage.blob import ContainerClient

client_id = os.environ.get("IDENTITY_CLIENT_ID")
credential = {
    "default": lambda: DefaultAzureCredential(managed_identity_client_id=client_id),
    "managed-identity": lambda: ManagedIdentityCredential(client_id=client_id),
}[sys.argv[1]]()
# The library would take up to two minutes over what fails, a refusal of a credential included.
container = ContainerClient(os.environ["BLOBS_URL"], "training-data", credential=credential, retry_total=0)
for line in sys.stdin:
    try:
        print("ok", *container.list_blob_names(), flush=True)
    except Exception as error:
        print(f"error {type(error).__name__}:", " ".join(str(error).split()), flush=True)
