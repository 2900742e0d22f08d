# What Google is told about the broker's assertions: which of them a provider takes, and whom they become. No provider of
# Terraform's is needed for it, so it is tested by itself: `terraform test`.
terraform {
  required_version = ">= 1.6"
}

locals {
  by_subject = { for name, target in var.targets : name => target if target.sharing == "subject" }
  by_target  = { for name, target in var.targets : name => target if target.sharing == "target" }

  tenants = sort(distinct([for tenant in var.tenants : lower(tenant)]))
  rules   = sort(distinct(flatten([for target in local.by_subject : target.rules])))

  # A list with one value is a comparison.
  tid = length(local.tenants) == 1 ? "assertion.tid == ${jsonencode(local.tenants[0])}" : format(
    "assertion.tid in [%s]", join(", ", [for tenant in local.tenants : jsonencode(tenant)])
  )
  rule = length(local.rules) == 1 ? "assertion.rule == ${jsonencode(local.rules[0])}" : format(
    "assertion.rule in [%s]", join(", ", [for rule in local.rules : jsonencode(rule)])
  )

  # The assertion of a credential that several share names the target and no tenant.
  guard  = length(local.by_target) == 0 ? "" : "has(assertion.tid) && "
  people = length(local.by_subject) == 0 ? [] : ["${local.guard}${local.tid} && ${local.rule}"]
  shared = [
    for name, target in local.by_target : join(" && ", [
      "assertion.sub == ${jsonencode("carnet:${name}")}",
      length(target.rules) == 1 ? "assertion.rule == ${jsonencode(target.rules[0])}" : format(
        "assertion.rule in [%s]", join(", ", [for rule in target.rules : jsonencode(rule)])
      ),
    ])
  ]
  alternatives = concat(local.people, local.shared)
  condition = length(local.alternatives) == 1 ? local.alternatives[0] : join(
    " || ", [for alternative in local.alternatives : "(${alternative})"]
  )

  mapping = merge(
    {
      "google.subject" = "assertion.sub"
      "attribute.rule" = "assertion.rule"
      "attribute.tid"  = length(local.by_target) == 0 ? "assertion.tid" : "has(assertion.tid) ? assertion.tid : \"\""
    },
    { for name in var.attributes : "attribute.${name}" => "has(assertion.${name}) ? assertion.${name} : \"\"" },
  )

  pool = "projects/${var.project_number}/locations/global/workloadIdentityPools/${var.pool}"
  # By what is bound: two targets of one account and rule share a binding, and neither takes it from the other.
  bindings = merge([
    for target in values(var.targets) : {
      for rule in distinct(target.rules) : "${target.service_account}/${rule}" => {
        service_account = target.service_account
        member          = "principalSet://iam.googleapis.com/${local.pool}/attribute.rule/${rule}"
      }
    }
  ]...)
}
