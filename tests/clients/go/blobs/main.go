// Blobs lists a container with Azure's library, once for each line `call`; the argument names the credential.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	var client *container.Client
	for lines.Scan() {
		names, err := list(&client)
		if err != nil {
			fmt.Printf("error %T: %s\n", err, strings.Join(strings.Fields(err.Error()), " "))
			continue
		}
		fmt.Println("ok", strings.Join(names, " "))
	}
}

func credential() (azcore.TokenCredential, error) {
	if os.Args[1] == "default" {
		return azidentity.NewDefaultAzureCredential(nil)
	}
	options := &azidentity.ManagedIdentityCredentialOptions{}
	if id := os.Getenv("IDENTITY_CLIENT_ID"); id != "" {
		options.ID = azidentity.ClientID(id)
	}
	return azidentity.NewManagedIdentityCredential(options)
}

func list(client **container.Client) (names []string, err error) {
	if *client == nil {
		credential, err := credential()
		if err != nil {
			return nil, err
		}
		if *client, err = container.NewClient(os.Getenv("BLOBS_URL")+"/training-data", credential, nil); err != nil {
			return nil, err
		}
	}
	pager := (*client).NewListBlobsFlatPager(nil)
	for pager.More() {
		page, err := pager.NextPage(context.Background())
		if err != nil {
			return nil, err
		}
		for _, blob := range page.Segment.BlobItems {
			names = append(names, *blob.Name)
		}
	}
	return names, nil
}
