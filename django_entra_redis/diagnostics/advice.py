"""Advice: the usual cause of each failure and what to do about it, by its code.

The page "Failure codes" of the documentation has a question for each; a test
compares them.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """Why something usually happens, and what to do about it."""

    cause: str
    cure: str

    def __str__(self) -> str:
        return f"{self.cause} {self.cure}"


_ASSIGN = (
    "Assign it: az redisenterprise database access-policy-assignment create "
    "(Azure Managed Redis) or az redis access-policy-assignment create (Azure Cache "
    "for Redis), with the principal's object ID."
)
_FIND_OBJECT_ID = (
    "az ad sp show --id CLIENT_ID --query id prints the object ID of an application "
    "or a user-assigned identity."
)
_ROLL_SECRET = (
    "az ad app credential reset --id CLIENT_ID --append makes a new one (without "
    "--append it deletes all others); set CLIENT_SECRET or $AZURE_CLIENT_SECRET to its "
    "value, not to its ID."
)
_FALLBACK = (
    "With KIND 'environment' it is what is left where $AZURE_TENANT_ID, "
    "$AZURE_CLIENT_ID and a secret, a certificate or a token file are not all set: in "
    "AKS the pod lacks the label azure.workload.identity/use."
)
_PROXY = "Let the machine reach AUTHORITY_HOST on port 443, if need be past the proxy."

ADVICE: Mapping[str, Advice] = {
    # -- settings
    "settings_invalid": Advice(
        "The settings can't be used as they are.",
        "The message names the key and what it should be.",
    ),
    # -- dns, tcp
    "dns_not_found": Advice(
        "The host in LOCATION is misspelt, or its private DNS zone is not linked to "
        "this network.",
        "Compare it with the host name on the cache's overview page in the portal.",
    ),
    "dns_timeout": Advice(
        "The name server does not answer.", "Look at the machine's DNS settings."
    ),
    "tcp_refused": Advice(
        "Nothing listens on that port.",
        "Azure Managed Redis listens on port 10000, Azure Cache for Redis on 6380.",
    ),
    "tcp_timeout": Advice(
        "A firewall drops the packets, or the cache has a private endpoint only.",
        "An Azure Cache for Redis has firewall rules: allow this machine's address. An "
        "Azure Managed Redis has none: az redisenterprise update "
        "--public-network-access Enabled, or a private endpoint in this network, with "
        "the DNS zone privatelink.redis.azure.net.",
    ),
    "tcp_unreachable": Advice(
        "There is no route to the cache from this network.",
        "Look at the virtual network, its peerings and its private endpoint.",
    ),
    # -- tls
    "port_silent": Advice(
        "The port is open, but what listens there says nothing: maybe a proxy or a "
        "load balancer without a server behind it.",
        "Look at what LOCATION's host name leads to from this machine.",
    ),
    "not_redis": Advice(
        "What listens on that port is something else than Redis.",
        "Azure Managed Redis listens on port 10000, Azure Cache for Redis on 6380.",
    ),
    "tls_plaintext_server": Advice(
        "The server does not speak TLS on that port.",
        "Use the TLS port (10000 or 6380), or redis:// for a local server.",
    ),
    "tls_expected": Advice(
        "LOCATION says redis://, but the server speaks TLS.",
        "Write rediss:// in place of redis://.",
    ),
    "tls_closed": Advice(
        "The server closed the connection in the middle of the TLS handshake.",
        "It is no TLS port, or a firewall looks into the traffic.",
    ),
    "tls_untrusted": Advice(
        "The certificate's issuer is not among those that this machine trusts.",
        "Install the issuer's root certificate (ca-certificates), or set "
        "OPTIONS['ssl_ca_certs'] to the path of its PEM file.",
    ),
    "tls_expired": Advice(
        "The server's certificate is out of date, or this machine's clock is wrong.",
        "Set the clock right (timedatectl set-ntp true). A cache's own certificate is "
        "renewed by Azure.",
    ),
    "tls_not_yet_valid": Advice(
        "This machine's clock is behind, so that the certificate is not valid yet.",
        "Set the clock right (timedatectl set-ntp true).",
    ),
    "tls_hostname": Advice(
        "The server's certificate is for another name than the one in LOCATION.",
        "Use the cache's own host name in LOCATION, neither its address nor an alias.",
    ),
    "tls_too_old": Advice(
        "The server and this machine have no TLS version in common.",
        "Azure takes TLS 1.2 and newer: look at OPTIONS['ssl_min_version'] and at the "
        "machine's OpenSSL configuration. The TLS 1.2 suites of an Azure Managed Redis "
        "are CBC's alone, which some configurations switch off; TLS 1.3 needs none.",
    ),
    "tls_file_unreadable": Advice(
        "A file that an ssl_ entry in OPTIONS, or $SSL_CERT_FILE, names is not there, "
        "may not be read, or holds no certificate in PEM form.",
        "Put right the file that the message names, or remove the entry.",
    ),
    "tls_failed": Advice(
        "The TLS handshake failed.", "Look at the ssl_ entries in OPTIONS."
    ),
    # -- token
    "token_failed": Advice(
        "The identity endpoint gave no token.", "Its own words are in the message."
    ),
    "token_unreachable": Advice(
        "The identity endpoint can't be reached from here, or AUTHORITY_HOST is not "
        "that of your cloud.",
        f"{_PROXY} In a cloud without a way to the public one set INSTANCE_DISCOVERY "
        "to False.",
    ),
    "token_timeout": Advice("The identity endpoint does not answer.", _PROXY),
    "token_proxy": Advice(
        "HTTPS_PROXY names a proxy that does not let the request through.", _PROXY
    ),
    "token_endpoint_untrusted": Advice(
        "A proxy that looks into TLS is in the way, or AUTHORITY_HOST is not Entra's.",
        "Set $REQUESTS_CA_BUNDLE to a file with the proxy's root certificate.",
    ),
    "token_not_json": Advice(
        "A proxy's login or error page answered in place of the identity endpoint.",
        _PROXY,
    ),
    "token_endpoint_failing": Advice(
        "The identity endpoint is down or overloaded; 404 and 410 are a virtual "
        "machine's words for 'not ready yet'.",
        "Nothing to do here: it is asked again until it answers. Azure's status page "
        "tells of outages. If 404 stays, look at $IDENTITY_ENDPOINT.",
    ),
    "token_ca_bundle": Advice(
        "$REQUESTS_CA_BUNDLE, or $CURL_CA_BUNDLE, names a file of certificates that is "
        "not there, may not be read, or holds none, or a directory of none.",
        "Put it right, or unset the variable: then certifi's certificates count.",
    ),
    "token_expiry_unreadable": Advice(
        "What answered states no expiry of its token, nor does the token, or what it "
        "states is no number of seconds, or no date of these years; App Service's API "
        "of 2017 ($MSI_ENDPOINT) states it in a form that can't be read.",
        "Set $IDENTITY_ENDPOINT and $IDENTITY_HEADER, as App Service does itself, and "
        "unset $MSI_ENDPOINT and $MSI_SECRET.",
    ),
    "token_bad_answer": Advice(
        "What answered is not an identity endpoint, or the object in CREDENTIAL "
        "returned what is no token.",
        "Look at AUTHORITY_HOST, at $IDENTITY_ENDPOINT, or at CREDENTIAL.",
    ),
    "token_redirected": Advice(
        "What answered sends the request elsewhere: a proxy that wants a login, or no "
        "identity endpoint. A redirect is not followed, since secrets would go there.",
        "Let the machine reach AUTHORITY_HOST on port 443, if need be past the proxy; "
        "look at AUTHORITY_HOST, or at $IDENTITY_ENDPOINT.",
    ),
    "token_patched_late": Advice(
        "gevent or eventlet has patched ssl after urllib3 had imported it.",
        "Patch before anything else is imported; for gunicorn --preload that is at the "
        "top of gunicorn.conf.py.",
    ),
    "token_unknown_tenant": Advice(
        "TENANT_ID is misspelt, or the tenant is in another cloud.",
        "az account show --query tenantId prints it; look at AUTHORITY_HOST too.",
    ),
    "token_wrong_cloud": Advice(
        "The tenant or the application is in another cloud than AUTHORITY_HOST.",
        "Set AUTHORITY_HOST, or $AZURE_AUTHORITY_HOST, to "
        "'login.partner.microsoftonline.cn' (China), 'login.microsoftonline.us' (US "
        "government) or your cloud's own; az cloud show --query "
        "endpoints.activeDirectory prints it.",
    ),
    "token_unknown_client": Advice(
        "CLIENT_ID is misspelt, is an object ID, or the application is in another "
        "tenant, or has no service principal in this one.",
        "It is the 'Application (client) ID' of the app registration in that tenant; "
        "az ad sp create --id CLIENT_ID makes its service principal.",
    ),
    "token_client_disabled": Advice(
        "Somebody has disabled the application in the tenant.",
        "az ad sp update --id CLIENT_ID --set accountEnabled=true",
    ),
    "token_blocked": Advice(
        "A Conditional Access policy for workload identities refuses this place.",
        "Look at the sign-in logs of the service principal in the Entra portal.",
    ),
    "token_request_loop": Advice(
        "Entra takes the application for one that asks in a loop, and refuses it for "
        "some minutes: processes that are started again and again, or many with one "
        "application.",
        "It is asked again after a minute. Look for processes that restart all the "
        "time; let those that last share a process's token.",
    ),
    "token_wrong_secret": Advice(
        "CLIENT_SECRET is not one of the application's, often its ID in place of its "
        "value.",
        _ROLL_SECRET,
    ),
    "token_expired_secret": Advice("The client secret has expired.", _ROLL_SECRET),
    "token_certificate_not_registered": Advice(
        "The certificate is not one of the application's.",
        "az ad app credential reset --id CLIENT_ID --cert @cert.pem --append "
        "registers it.",
    ),
    "token_certificate_expired": Advice(
        "The application's certificate has expired, or this machine's clock is wrong.",
        "Make a new one, register it (az ad app credential reset --id CLIENT_ID --cert "
        "@cert.pem --append), and replace the file in CLIENT_CERTIFICATE, which is "
        "read again.",
    ),
    "certificate_unreadable": Advice(
        "The file is not there, or this process may not read it, or it is a pipe, a "
        "device, or larger than a megabyte.",
        "Look at CLIENT_CERTIFICATE, and at the file's owner and mode.",
    ),
    "certificate_unusable": Advice(
        "The password is wrong, or the file holds no private RSA key with its own "
        "certificate (Entra takes no elliptic ones).",
        "Look at CLIENT_CERTIFICATE_PASSWORD, and whether the file is PEM or PFX; in "
        "Key Vault choose the key type RSA.",
    ),
    "token_file_unreadable": Advice(
        "The federated token's file is not there: the pod lacks the label "
        "azure.workload.identity/use, or its service account the annotation. Or it is "
        "no regular file, or larger than a megabyte.",
        "Look at TOKEN_FILE or $AZURE_FEDERATED_TOKEN_FILE, and at the pod's labels.",
    ),
    "token_file_unusable": Advice(
        "The federated token's file is empty, or holds something else than a token.",
        "It should hold the token alone, as one line of plain text (ASCII or UTF-8): "
        "look at what writes it.",
    ),
    "token_assertion_expired": Advice(
        "The federated token in the file has expired: nothing rotates it.",
        "Mount a projected service account token, which Kubernetes rotates.",
    ),
    "token_assertion_rejected": Advice(
        "No federated credential of the application matches the token's issuer, "
        "subject and audience.",
        "az identity federated-credential list --identity-name NAME --resource-group "
        "GROUP, or az ad app federated-credential list --id CLIENT_ID, shows what is "
        "registered.",
    ),
    "token_assertion_of_entra": Advice(
        "The federated token is one of Entra's own, of a kind that cannot stand in for "
        "a federated credential: that takes a managed identity's token, with the "
        "audience api://AzureADTokenExchange, and no chain of such exchanges.",
        "Use the identity whose token it is (KIND 'managed_identity'), or a federated "
        "token of another issuer.",
    ),
    "token_identity_binding": Advice(
        "The pod has an identity binding ($AZURE_KUBERNETES_TOKEN_PROXY is set): its "
        "token's file is for the cluster's proxy, and Entra refuses it.",
        "Set CREDENTIAL to azure.identity's WorkloadIdentityCredential("
        "enable_azure_proxy=True), made in the settings, which asks the proxy "
        "(azure-identity 1.26 or newer).",
    ),
    "token_federation_blocked": Advice(
        "A policy of the tenant forbids federated credentials, or asks for claims that "
        "the federated token does not have (GitHub's enterprise claim).",
        "Ask the tenant's administrator to allow this issuer, or use a managed "
        "identity.",
    ),
    "token_resource_missing": Advice(
        "The tenant has no service principal for Redis, which most tenants have from "
        "their first cache on.",
        "az ad sp create --id acca5fbb-b7e4-4009-81f1-37e38fd66d78 makes it, for which "
        "an administrator's role is needed.",
    ),
    "token_resource_disabled": Advice(
        "Somebody has disabled Redis' service principal in the tenant.",
        "az ad sp update --id acca5fbb-b7e4-4009-81f1-37e38fd66d78 --set "
        "accountEnabled=true",
    ),
    "token_wrong_scope": Advice(
        "SCOPE is not a resource that this tenant knows.",
        "Leave SCOPE out: it is https://redis.azure.com/.default in every cloud that "
        "has Redis with Entra.",
    ),
    "managed_identity_unavailable": Advice(
        "There is no managed identity endpoint here: this is not an Azure machine, or "
        f"none is assigned to it. {_FALLBACK}",
        "az webapp identity assign, az vm identity assign or az containerapp identity "
        "assign; on your own machine set CREDENTIAL to "
        "'azure.identity.AzureCliCredential'.",
    ),
    "managed_identity_not_up": Advice(
        "This platform tells of an identity endpoint ($IDENTITY_ENDPOINT), and nothing "
        "listens there: what serves it, such as the sidecar of Container Apps or Azure "
        "Arc's agent, is not up yet, or has ended.",
        "It is asked again until it answers. If that takes minutes, restart the app or "
        "the agent (systemctl restart himdsd).",
    ),
    "managed_identity_variables": Advice(
        "A platform tells of its identity endpoint in environment variables, and these "
        "are malformed or not complete: set by hand, quoted in a file, or lost on the "
        "way to this process (sudo, systemd, cron). $MSI_ENDPOINT alone is Azure Cloud "
        "Shell's.",
        "Take them as the platform sets them: $IDENTITY_ENDPOINT with $IDENTITY_HEADER "
        "(App Service, Container Apps), these and $IDENTITY_SERVER_THUMBPRINT (Service "
        "Fabric), $IDENTITY_ENDPOINT with $IMDS_ENDPOINT (Azure Arc), $MSI_ENDPOINT "
        "with $MSI_SECRET (Azure Machine Learning); on a virtual machine unset all. "
        "In Cloud Shell set CREDENTIAL to 'azure.identity.AzureCliCredential'.",
    ),
    "managed_identity_timeout": Advice(
        "The machine's managed identity endpoint does not answer.",
        "It is asked again until it does; if that takes minutes, restart the app or "
        "the machine, whose agent it is. A virtual machine's serves 20 requests a "
        "second and 5 at a time: many processes that start at once wait for each "
        "other.",
    ),
    "managed_identity_unknown": Advice(
        "The identity that CLIENT_ID, OBJECT_ID or RESOURCE_ID names is not assigned "
        f"to this machine, or no identity is. {_FALLBACK}",
        "az vm identity show, or az webapp identity show, lists those that are.",
    ),
    "managed_identity_ambiguous": Advice(
        "Several user-assigned identities, or no other, are assigned to this machine, "
        "and none is named.",
        f"Set CLIENT_ID, or $AZURE_CLIENT_ID, to the client ID of one. {_FALLBACK}",
    ),
    "managed_identity_refused": Advice(
        "The machine's managed identity endpoint refused the request.",
        "Its own words are in the message.",
    ),
    "arc_key_unreadable": Advice(
        "Azure Arc's agent hands out tokens to whoever can read its key file, and this "
        "process can't: its user is not in the group himds.",
        "sudo usermod --append --groups himds USER, and restart the app; on Windows it "
        "is the group 'Hybrid agent extension applications'.",
    ),
    "credential_import": Advice(
        "The dotted path in CREDENTIAL names nothing that can be imported.",
        "It is written as 'package.module.name'.",
    ),
    "azure_identity_missing": Advice(
        "CREDENTIAL needs azure-identity, which is not installed.",
        'python -m pip install "django-entra-redis[azure-identity]"',
    ),
    "credential_raised": Advice(
        "The object in CREDENTIAL gave no token.", "Its own words are in the message."
    ),
    "credential_asynchronous": Advice(
        "The object in CREDENTIAL is asynchronous, as those of azure.identity.aio are; "
        "tokens are requested in a thread of their own, without an event loop.",
        "Take the class of the same name from azure.identity: it serves asynchronous "
        "code as well.",
    ),
    "token_without_oid": Advice(
        "The token does not say whose it is: it is no token of Entra's for an "
        "application.",
        "Set USERNAME to the principal's object ID.",
    ),
    "token_expired_already": Advice(
        "The token has expired, and this machine's clock is not to blame: the identity "
        "endpoint's own says so, too (its Date header), or it states a life of no "
        "seconds, or CREDENTIAL hands out an old token.",
        "A newer one is asked for until there is one. If that takes minutes, restart "
        "the app or the machine, whose agent keeps tokens.",
    ),
    "token_clock_off": Advice(
        "This machine's clock is off by more than the token lasts.",
        "Set the clock right (timedatectl set-ntp true).",
    ),
    # -- auth
    "auth_refused": Advice(
        "The principal has no access policy on this cache, or Entra authentication is "
        "switched off there.",
        f"{_ASSIGN} The portal's Authentication page of the cache tells whether "
        "Microsoft Entra Authentication is on.",
    ),
    "auth_username_is_client_id": Advice(
        "The Redis user name is the principal's client ID. It must be its object ID, "
        "the commonest mistake.",
        f"Leave USERNAME out, or set it to the object ID. {_FIND_OBJECT_ID}",
    ),
    "auth_wrong_audience": Advice(
        "The token is for another service than Redis.",
        "Leave SCOPE out: it is https://redis.azure.com/.default.",
    ),
    "auth_password": Advice(
        "OPTIONS['identity'] is None, and the server wants a user name and password "
        "other than those in LOCATION and OPTIONS, if any.",
        "Leave OPTIONS['identity'] out for a cache with Entra.",
    ),
    "auth_max_clients": Advice(
        "The cache has as many connections as its size allows.",
        "Set OPTIONS['max_connections'] lower, run fewer processes, or scale up.",
    ),
    "database_refused": Advice(
        "The server has database 0 alone: it is an Azure Managed Redis, whatever its "
        "name says (a migration has the host name of an Azure Cache for Redis lead to "
        "one), or a cluster.",
        "Remove the database from LOCATION and OPTIONS, and tell caches apart by "
        "KEY_PREFIX. Keys in other databases do not come along: a cache fills itself "
        "anew.",
    ),
    "auth_failed": Advice(
        "The connection broke while it was being authenticated.",
        "Look at the cache's metrics for a failover or a restart at this time.",
    ),
    # -- ping, round_trip
    "server_loading": Advice(
        "Redis is reading its data back after a restart; with BUSY it runs a script "
        "that does not end, with MASTERDOWN it is a replica without its primary.",
        "Wait for it to finish. SCRIPT KILL ends a script.",
    ),
    "server_failed": Advice(
        "Redis answered with an error.", "Its own words are in the message."
    ),
    "server_timeout": Advice(
        "Redis was busy, or the network lost the answer.",
        "Look at the cache's server load in the portal; give the check more time with "
        "--timeout.",
    ),
    "server_closed": Advice(
        "Redis closed the connection: a failover, a restart, or a change of its access "
        "settings.",
        "Run the check again; look at the cache's activity log if it stays so.",
    ),
    "access_policy_too_narrow": Advice(
        "The principal's access policy does not allow a command or a key that Django's "
        "cache needs.",
        "Assign 'Data Contributor' or 'Data Owner', or widen the custom policy (az "
        "redis access-policy update, or the portal's Data Access Configuration; those "
        "of an Azure Managed Redis are a preview, with --access-string): Django needs "
        "+@read +@write +ping +eval on the keys of this cache, lock() "
        "+evalsha +script|load, another db +select, an OSS cluster +cluster|slots, "
        "OPTIONS['client_name'] +client|setname.",
    ),
    "access_lost": Advice(
        "Redis let the connection in, and then no more: the access policy has been "
        "taken away, or the token revoked.",
        _ASSIGN,
    ),
    "server_out_of_memory": Advice(
        "The cache is full, and its eviction policy removes nothing.",
        "Set the eviction policy to allkeys-lru or volatile-lru (az redisenterprise "
        "database update --eviction-policy AllKeysLRU; in the portal of an Azure Cache "
        "for Redis maxmemory-policy, under Advanced settings), or scale up.",
    ),
    "server_read_only": Advice(
        "LOCATION names a replica, or a failover is under way; with MISCONF the server "
        "can't save its data, with NOREPLICAS it has too few replicas.",
        "Use the cache's own host name; the first server in LOCATION is written to. Of "
        "the other two, the server's own log says more.",
    ),
    "cluster_policy_oss": Advice(
        "The cache has the OSS cluster policy: its keys lie on several nodes.",
        "Set BACKEND to 'django_entra_redis.cache.EntraRedisClusterCache'.",
    ),
    "cluster_policy_enterprise": Advice(
        "The cache has no OSS cluster policy: it is one endpoint for all keys.",
        "Set BACKEND to 'django_entra_redis.cache.EntraRedisCache'. az "
        "redisenterprise database show --cluster-name NAME --resource-group GROUP "
        "--query clusteringPolicy prints the policy.",
    ),
    "cluster_node_unreachable": Advice(
        "The cluster's endpoint can be reached, but not one of its nodes.",
        "Let the network through to their ports, too: 85xx of an Azure Managed Redis, "
        "15xxx of an Azure Cache for Redis; or set OPTIONS['address_remap'], such as "
        "lambda address: ('10.0.0.4', address[1]), to where they are reached. Nodes "
        "with certificates for names of their own need OPTIONS['node_domain'].",
    ),
    "cluster_unavailable": Advice(
        "The cluster does not list its nodes, or none of them serves a part of the "
        "keys: a failover or a scaling is under way.",
        "Run the check again in a minute; look at the cache's activity log if it "
        "stays so.",
    ),
    "round_trip_wrong_value": Advice(
        "What was read is not what was written: something else writes the same keys.",
        "Give the caches that share a database different KEY_PREFIXes.",
    ),
    "replica_behind": Advice(
        "The other servers in LOCATION are no replicas of the first, or lag behind.",
        "Azure's caches have one host name: LOCATION is that alone.",
    ),
    # -- anywhere
    "unexpected": Advice(
        "The check met an error that it does not know.",
        "Please report it, with the message.",
    ),
}
