import com.google.api.client.http.GenericUrl;
import com.google.api.client.http.javanet.NetHttpTransport;
import com.google.api.client.json.GenericJson;
import com.google.api.client.json.JsonObjectParser;
import com.google.api.client.json.gson.GsonFactory;
import com.google.auth.http.HttpCredentialsAdapter;
import com.google.auth.oauth2.GoogleCredentials;
import java.util.List;
import java.util.Map;
import java.util.Scanner;

/** Lists a bucket with application default credentials, once for each line `call`. */
public class Storage {
    private static GoogleCredentials credentials;

    public static void main(String[] arguments) {
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            lines.nextLine();
            try {
                System.out.println("ok " + String.join(" ", list()));
            } catch (Exception error) {
                System.out.println("error " + error.getClass().getName() + ": " + oneLine(error));
            }
        }
    }

    private static List<String> list() throws Exception {
        if (credentials == null) {
            credentials = GoogleCredentials.getApplicationDefault()
                    .createScoped("https://www.googleapis.com/auth/devstorage.read_only");
        }
        var requests = new NetHttpTransport().createRequestFactory(new HttpCredentialsAdapter(credentials));
        var url = new GenericUrl(System.getenv("STORAGE_URL") + "/storage/v1/b/training-data/o");
        var request = requests.buildGetRequest(url).setParser(new JsonObjectParser(GsonFactory.getDefaultInstance()));
        var items = (List<?>) request.execute().parseAs(GenericJson.class).get("items");
        return items.stream().map(item -> (String) ((Map<?, ?>) item).get("name")).toList();
    }

    private static String oneLine(Throwable error) {
        String message = String.valueOf(error.getMessage());
        return (error.getCause() == null ? message : message + ": " + error.getCause().getMessage()).replaceAll("\\s+", " ");
    }
}
