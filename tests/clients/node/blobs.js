// Lists a container with Azure's library, once for each line `call`; the argument names the credential.

import { createInterface } from 'node:readline';
import { DefaultAzureCredential, ManagedIdentityCredential } from '@azure/identity';
import { ContainerClient } from '@azure/storage-blob';

const clientId = process.env.IDENTITY_CLIENT_ID;
const credential = {
  default: () => new DefaultAzureCredential({ managedIdentityClientId: clientId }),
  'managed-identity': () => (clientId ? new ManagedIdentityCredential({ clientId }) : new ManagedIdentityCredential()),
}[process.argv[2]]();
const container = new ContainerClient(`${process.env.BLOBS_URL}/training-data`, credential);
for await (const line of createInterface({ input: process.stdin })) {
  try {
    const names = [];
    for await (const blob of container.listBlobsFlat()) names.push(blob.name);
    console.log('ok', ...names);
  } catch (error) {
    console.log(`error ${error.name}:`, String(error.message).replace(/\s+/g, ' '));
  }
}
