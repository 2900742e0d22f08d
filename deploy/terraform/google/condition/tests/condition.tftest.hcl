variables {
  project_number = "123456789"
  pool           = "ml-pool"
  provider_id    = "carnet"
  tenants        = ["11111111-1111-1111-1111-111111111111"]
  targets = {
    vertex-training = {
      service_account = "trainer@ml-prod.iam.gserviceaccount.com"
      rules           = ["vision-training"]
    }
  }
}

run "one_tenant_and_one_rule" {
  command = plan
  assert {
    condition     = output.condition == "assertion.tid == \"11111111-1111-1111-1111-111111111111\" && assertion.rule == \"vision-training\""
    error_message = output.condition
  }
  assert {
    condition     = output.audience == "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet"
    error_message = output.audience
  }
  assert {
    condition     = output.bindings["trainer@ml-prod.iam.gserviceaccount.com/vision-training"].member == "principalSet://iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/attribute.rule/vision-training"
    error_message = jsonencode(output.bindings)
  }
  assert {
    condition     = output.mapping["attribute.tid"] == "assertion.tid"
    error_message = jsonencode(output.mapping)
  }
}

run "several_of_each" {
  command = plan
  variables {
    tenants    = ["22222222-2222-2222-2222-222222222222", "11111111-1111-1111-1111-111111111111"]
    attributes = ["team"]
    targets = {
      b = { service_account = "b@p.iam.gserviceaccount.com", rules = ["two", "one"] }
      a = { service_account = "a@p.iam.gserviceaccount.com", rules = ["one"] }
    }
  }
  assert {
    condition     = output.condition == "assertion.tid in [\"11111111-1111-1111-1111-111111111111\", \"22222222-2222-2222-2222-222222222222\"] && assertion.rule in [\"one\", \"two\"]"
    error_message = output.condition
  }
  assert {
    condition     = length(output.bindings) == 3 && output.mapping["attribute.team"] == "has(assertion.team) ? assertion.team : \"\""
    error_message = jsonencode([output.bindings, output.mapping])
  }
}

run "two_targets_of_one_account_share_a_binding" {
  command = plan
  variables {
    targets = {
      day   = { service_account = "a@p.iam.gserviceaccount.com", rules = ["one", "one"] }
      night = { service_account = "a@p.iam.gserviceaccount.com", rules = ["one", "two"] }
    }
  }
  assert {
    condition     = join(" ", keys(output.bindings)) == "a@p.iam.gserviceaccount.com/one a@p.iam.gserviceaccount.com/two"
    error_message = jsonencode(output.bindings)
  }
}

run "a_credential_that_is_shared_names_no_tenant" {
  command = plan
  variables {
    targets = {
      vertex = { service_account = "a@p.iam.gserviceaccount.com", rules = ["one"] }
      common = { service_account = "b@p.iam.gserviceaccount.com", rules = ["one", "two"], sharing = "target" }
    }
  }
  assert {
    condition = output.condition == join(" || ", [
      "(has(assertion.tid) && assertion.tid == \"11111111-1111-1111-1111-111111111111\" && assertion.rule == \"one\")",
      "(assertion.sub == \"carnet:common\" && assertion.rule in [\"one\", \"two\"])",
    ])
    error_message = output.condition
  }
}

run "no_tenant_is_no_condition" {
  command = plan
  variables {
    tenants = []
  }
  expect_failures = [var.tenants]
}

run "a_target_without_rules_takes_nobody" {
  command = plan
  variables {
    targets = { vertex = { service_account = "a@p.iam.gserviceaccount.com", rules = [] } }
  }
  expect_failures = [var.targets]
}

run "a_rules_name_is_no_expression" {
  command = plan
  variables {
    targets = { vertex = { service_account = "a@p.iam.gserviceaccount.com", rules = ["x\" || true || \""] } }
  }
  expect_failures = [var.targets]
}

run "the_project_goes_by_number" {
  command = plan
  variables {
    project_number = "ml-prod"
  }
  expect_failures = [var.project_number]
}
