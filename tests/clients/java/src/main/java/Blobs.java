import com.azure.core.credential.TokenCredential;
import com.azure.identity.DefaultAzureCredentialBuilder;
import com.azure.identity.ManagedIdentityCredentialBuilder;
import com.azure.storage.blob.BlobContainerClient;
import com.azure.storage.blob.BlobContainerClientBuilder;
import com.azure.storage.blob.models.BlobItem;
import java.util.List;
import java.util.Scanner;
import java.util.stream.Collectors;

/** Lists a container with Azure's library, once for each line `call`; the argument names the credential. */
public class Blobs {
    private static BlobContainerClient container;

    public static void main(String[] arguments) {
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            lines.nextLine();
            try {
                System.out.println("ok " + String.join(" ", list(arguments[0])));
            } catch (Exception error) {
                String message = String.valueOf(error.getMessage()).replaceAll("\\s+", " ");
                System.out.println("error " + error.getClass().getName() + ": " + message);
            }
        }
        // Netty's threads would keep it alive.
        System.exit(0);
    }

    private static List<String> list(String kind) {
        if (container == null) {
            container = new BlobContainerClientBuilder()
                    .endpoint(System.getenv("BLOBS_URL"))
                    .containerName("training-data")
                    .credential(credential(kind))
                    .buildClient();
        }
        return container.listBlobs().stream().map(BlobItem::getName).collect(Collectors.toList());
    }

    private static TokenCredential credential(String kind) {
        String clientId = System.getenv("IDENTITY_CLIENT_ID");
        return kind.equals("default")
                ? new DefaultAzureCredentialBuilder().managedIdentityClientId(clientId).build()
                : new ManagedIdentityCredentialBuilder().clientId(clientId).build();
    }
}
