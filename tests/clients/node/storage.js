// Lists a bucket with Google's library and application default credentials, once for each line `call`.

import { createInterface } from 'node:readline';
import { Storage } from '@google-cloud/storage';

const storage = new Storage({ apiEndpoint: process.env.STORAGE_URL, useAuthWithCustomEndpoint: true });
for await (const line of createInterface({ input: process.stdin })) {
  try {
    const [files] = await storage.bucket('training-data').getFiles();
    console.log('ok', ...files.map((file) => file.name));
  } catch (error) {
    console.log(`error ${error.name}:`, String(error.message).replace(/\s+/g, ' '));
  }
}
