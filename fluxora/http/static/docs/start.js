// Shows the OpenAPI document of this server. Nothing leaves its origin: no validator, no configuration from the URL.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#viewer",
  deepLinking: true,
  displayRequestDuration: true,
  queryConfigEnabled: false,
  validatorUrl: null,
});
