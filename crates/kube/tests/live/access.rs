//! Kubeconfigs: contexts, tokens, certificates, programs that log in.

use std::sync::Arc;

use portcullis_kube::live::{Access, Error};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::server::{Objects, Server, access, file, kubeconfig, list};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Authority(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// A certificate and its key.
    fn signed(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    /// What a kubeconfig says of it.
    fn field(&self) -> String {
        format!("certificate-authority: {:?}", file(&self.0.pem()))
    }
}

/// A server with a certificate for this name that wants one of every client, if there is an
/// authority for those.
fn server(authority: &Authority, name: &str, clients: Option<&Authority>) -> Server {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.0.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let (certificate, key) = authority.signed(name);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    Server::listen(Some(config), |asked| list(&Objects::new(), asked))
}

#[test]
fn the_token_is_sent_and_the_context_says_cluster_and_namespace() {
    let server = Server::of(Objects::new());
    let snapshot = server.read().unwrap();
    assert_eq!((&*snapshot.cluster, &*snapshot.namespace), ("test", "shop"));
    let asked = server.asked();
    assert!(asked.iter().all(|a| a.headers["authorization"] == "Bearer secret"));
}

#[test]
fn a_server_is_trusted_by_the_authority_of_the_kubeconfig() {
    let authority = Authority::new();
    let server = server(&authority, "127.0.0.1", None);
    let config = kubeconfig(&server.url, &authority.field(), "token: secret");
    access(&config).read(|_| ()).unwrap();
    assert!(!server.asked().is_empty());
}

#[test]
fn a_server_of_another_authority_gets_no_token() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = server(&other, "127.0.0.1", None);
    let config = kubeconfig(&server.url, &authority.field(), "token: secret");
    let error = access(&config).read(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
    assert!(server.asked().is_empty());
}

#[test]
fn a_certificate_for_another_name_is_refused_unless_the_kubeconfig_says_that_name() {
    let authority = Authority::new();
    let server = server(&authority, "kubernetes.default.svc", None);
    let config = kubeconfig(&server.url, &authority.field(), "token: secret");
    let error = access(&config).read(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    let cluster = authority.field() + ", tls-server-name: kubernetes.default.svc";
    let config = kubeconfig(&server.url, &cluster, "token: secret");
    access(&config).read(|_| ()).unwrap();
}

#[test]
fn a_client_certificate_logs_in() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let server = server(&authority, "127.0.0.1", Some(&clients));
    let (certificate, key) = clients.signed("me");
    let user = format!(
        "client-certificate: {:?}, client-key: {:?}",
        file(&certificate.pem()),
        file(&key.serialize_pem())
    );
    access(&kubeconfig(&server.url, &authority.field(), &user)).read(|_| ()).unwrap();
    let config = kubeconfig(&server.url, &authority.field(), "token: secret");
    let error = access(&config).read(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Credentials { .. }), "{error:?}");
    assert!(error.to_string().contains("it wants a client certificate"), "{error}");
}

#[test]
fn a_server_that_does_not_speak_tls_is_told() {
    let server = Server::of(Objects::new());
    let url = server.url.replace("http:", "https:");
    let error = access(&kubeconfig(&url, "", "token: secret")).read(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
}

#[test]
fn a_program_can_log_in_and_its_words_are_shown_if_it_does_not() {
    let server = Server::of(Objects::new());
    let user = |script: &str| {
        let script = file(script);
        format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, \
             command: sh, args: [{script:?}]}}"
        )
    };
    let good = "echo '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\
                \"kind\":\"ExecCredential\",\"status\":{\"token\":\"made\"}}'";
    access(&kubeconfig(&server.url, "", &user(good))).read(|_| ()).unwrap();
    assert!(server.asked().iter().all(|a| a.headers["authorization"] == "Bearer made"));

    let bad = kubeconfig(&server.url, "", &user("echo please log in first >&2; exit 3"));
    let error = access(&bad).read(|_| ()).unwrap_err().to_string();
    assert!(error.ends_with("sh ended with exit status: 3: please log in first"), "{error}");
}

#[test]
fn contexts_that_are_not_there_are_told_with_those_that_are() {
    let config = kubeconfig("http://127.0.0.1:9", "", "token: secret");
    let of = |context: &str| Access { context: Some(context.to_owned()), ..access(&config) };
    let error = of("prod").read(|_| ()).unwrap_err().to_string();
    assert!(error.ends_with("has no context \"prod\": it has here, elsewhere"), "{error}");
    let error = of("elsewhere").read(|_| ()).unwrap_err().to_string();
    assert!(error.ends_with("nowhere"), "{error}");

    let config = file("apiVersion: v1\nkind: Config\n");
    let error = access(&config).read(|_| ()).unwrap_err().to_string();
    assert!(error.contains("has no current context: name one with --context"), "{error}");
}

#[test]
fn a_kubeconfig_that_is_none_is_told_by_its_name() {
    for (text, expected) in [("{{{", "failed to parse kubeconfig YAML"), ("- a\n- b\n", "parse")] {
        let config = file(text);
        let error = access(&config).read(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(config.to_str().unwrap()), "{error}");
    }
    let missing = access(std::path::Path::new("/no/such/file")).read(|_| ()).unwrap_err();
    assert!(missing.to_string().contains("/no/such/file: No such file"), "{missing}");
}
