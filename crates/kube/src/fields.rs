//! The names of the fields of each type that is walked through (Kubernetes 1.34, and those that
//! older clusters still return).

/// `ObjectMeta`.
pub(crate) const OBJECT_META: &[&str] = &[
    "name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation",
    "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "labels",
    "annotations", "ownerReferences", "finalizers", "managedFields", "clusterName",
];

/// `OwnerReference`.
pub(crate) const OWNER_REFERENCE: &[&str] = &[
    "apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion",
];

/// `NodeSpec`.
pub(crate) const NODE_SPEC: &[&str] = &[
    "podCIDR", "podCIDRs", "providerID", "unschedulable", "taints", "configSource", "externalID",
];

/// `ServiceSpec`.
pub(crate) const SERVICE_SPEC: &[&str] = &[
    "ports", "selector", "clusterIP", "clusterIPs", "type", "externalIPs", "sessionAffinity",
    "loadBalancerIP", "loadBalancerSourceRanges", "externalName", "externalTrafficPolicy",
    "healthCheckNodePort", "publishNotReadyAddresses", "sessionAffinityConfig", "ipFamilies",
    "ipFamilyPolicy", "allocateLoadBalancerNodePorts", "loadBalancerClass",
    "internalTrafficPolicy", "trafficDistribution",
];

/// `ServicePort`.
pub(crate) const SERVICE_PORT: &[&str] = &[
    "name", "protocol", "appProtocol", "port", "targetPort", "nodePort",
];

/// `PodSpec`.
pub(crate) const POD_SPEC: &[&str] = &[
    "volumes", "initContainers", "containers", "ephemeralContainers", "restartPolicy",
    "terminationGracePeriodSeconds", "activeDeadlineSeconds", "dnsPolicy", "nodeSelector",
    "serviceAccountName", "serviceAccount", "automountServiceAccountToken", "nodeName",
    "hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "securityContext",
    "imagePullSecrets", "hostname", "subdomain", "affinity", "schedulerName", "tolerations",
    "hostAliases", "priorityClassName", "priority", "dnsConfig", "readinessGates",
    "runtimeClassName", "enableServiceLinks", "preemptionPolicy", "overhead",
    "topologySpreadConstraints", "setHostnameAsFQDN", "os", "hostUsers", "schedulingGates",
    "resourceClaims", "resources", "hostnameOverride", "workloadRef",
];

/// `Container`.
pub(crate) const CONTAINER: &[&str] = &[
    "name", "image", "command", "args", "workingDir", "ports", "envFrom", "env", "resources",
    "resizePolicy", "restartPolicy", "restartPolicyRules", "volumeMounts", "volumeDevices",
    "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "terminationMessagePath",
    "terminationMessagePolicy", "imagePullPolicy", "securityContext", "stdin", "stdinOnce",
    "tty",
];

/// `ContainerPort`.
pub(crate) const CONTAINER_PORT: &[&str] = &[
    "name", "hostPort", "containerPort", "protocol", "hostIP",
];

/// `DeploymentSpec`.
pub(crate) const DEPLOYMENT_SPEC: &[&str] = &[
    "replicas", "selector", "template", "strategy", "minReadySeconds", "revisionHistoryLimit",
    "paused", "progressDeadlineSeconds",
];

/// `StatefulSetSpec`.
pub(crate) const STATEFUL_SET_SPEC: &[&str] = &[
    "replicas", "selector", "template", "volumeClaimTemplates", "serviceName",
    "podManagementPolicy", "updateStrategy", "revisionHistoryLimit", "minReadySeconds",
    "persistentVolumeClaimRetentionPolicy", "ordinals",
];

/// `DaemonSetSpec`.
pub(crate) const DAEMON_SET_SPEC: &[&str] = &[
    "selector", "template", "updateStrategy", "minReadySeconds", "revisionHistoryLimit",
];

/// `JobSpec`.
pub(crate) const JOB_SPEC: &[&str] = &[
    "parallelism", "completions", "activeDeadlineSeconds", "podFailurePolicy", "successPolicy",
    "backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes", "selector", "manualSelector",
    "template", "ttlSecondsAfterFinished", "completionMode", "suspend", "podReplacementPolicy",
    "managedBy",
];

/// `CronJobSpec`.
pub(crate) const CRON_JOB_SPEC: &[&str] = &[
    "schedule", "timeZone", "startingDeadlineSeconds", "concurrencyPolicy", "suspend",
    "jobTemplate", "successfulJobsHistoryLimit", "failedJobsHistoryLimit",
];

/// `ReplicaSetSpec` and `ReplicationControllerSpec`.
pub(crate) const REPLICA_SET_SPEC: &[&str] = &[
    "replicas", "minReadySeconds", "selector", "template",
];
