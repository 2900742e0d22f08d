// Storage lists a bucket with application default credentials, once for each line `call`; the argument names the
// library: `auth` is what the current Cloud Client Libraries use, `oauth2` what came before and is still everywhere.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"cloud.google.com/go/auth/credentials"
	"golang.org/x/oauth2/google"
)

const scope = "https://www.googleapis.com/auth/devstorage.read_only"

func main() {
	lines := bufio.NewScanner(os.Stdin)
	var token func() (string, error)
	for lines.Scan() {
		names, err := list(&token)
		if err != nil {
			fmt.Printf("error %T: %s\n", err, strings.Join(strings.Fields(err.Error()), " "))
			continue
		}
		fmt.Println("ok", strings.Join(names, " "))
	}
}

func tokens(library string) (func() (string, error), error) {
	background := context.Background()
	if library == "auth" {
		found, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: []string{scope}})
		if err != nil {
			return nil, err
		}
		return func() (string, error) {
			token, err := found.Token(background)
			if err != nil {
				return "", err
			}
			return token.Value, nil
		}, nil
	}
	found, err := google.FindDefaultCredentials(background, scope)
	if err != nil {
		return nil, err
	}
	return func() (string, error) {
		token, err := found.TokenSource.Token()
		if err != nil {
			return "", err
		}
		return token.AccessToken, nil
	}, nil
}

func list(token *func() (string, error)) (names []string, err error) {
	if *token == nil {
		if *token, err = tokens(os.Args[1]); err != nil {
			return nil, err
		}
	}
	bearer, err := (*token)()
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequest("GET", os.Getenv("STORAGE_URL")+"/storage/v1/b/training-data/o", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+bearer)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", answer.Status, body)
	}
	var objects struct{ Items []struct{ Name string } }
	if err := json.Unmarshal(body, &objects); err != nil {
		return nil, err
	}
	for _, object := range objects.Items {
		names = append(names, object.Name)
	}
	return names, nil
}
